from django.urls import path

from shop import views

urlpatterns = [
    path("visit/<str:who>", views.visit),
    path("slow/<str:seconds>", views.slow),
    path("pool", views.pool),
]
