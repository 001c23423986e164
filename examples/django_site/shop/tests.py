from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase

from shop.models import Visit


class Visits(TestCase):
    def test_a_visit_is_counted(self):
        for expected in (1, 2):
            response = self.client.get("/visit/anna")
            self.assertEqual(response.json(), {"who": "anna", "visits": expected})

    def test_each_test_begins_with_none(self):
        self.assertEqual(Visit.objects.count(), 0)

    def test_an_inner_block_is_rolled_back_alone(self):
        with transaction.atomic():
            Visit.objects.create(id=1, who="anna")
            with self.assertRaises(IntegrityError), transaction.atomic():
                Visit.objects.create(id=1, who="otto")
        self.assertEqual(Visit.objects.get().who, "anna")


class Transactions(TransactionTestCase):
    def test_what_takes_too_long_is_given_up_and_the_next_is_answered(self):
        self.assertEqual(self.client.get("/slow/5").status_code, 504)
        self.assertEqual(self.client.get("/visit/anna").json()["visits"], 1)

    def test_the_database_is_that_of_the_tests(self):
        self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))
        self.assertGreater(connection.pool.stats().acquired, 0)
